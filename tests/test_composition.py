"""Pairs that are held out of training never occur there, and the only ones that the test of composition asks for."""

from dataclasses import replace

import pytest
from recipe_module import recipe_module

from vidgen.data.shapes import COLOURS, HELD_OUT_PAIRS, SHAPES, TRAINED_PAIRS, ShapesWorld
from vidgen.eval.obedience import draw_prompts
from vidgen.eval.oracle import Oracle
from vidgen.eval.report import write_json
from vidgen.training import DataConfig, GeneratorRun, TokenizerRun
from vidgen.training.clips import training_clips, validation_clips
from vidgen.training.models import check_held_out, fresh_pipeline, fresh_tokenizer


def pairs_of(scenes) -> set[tuple[str, str]]:
    return {(item.colour, item.shape) for scene in scenes for item in scene.objects}


def test_twenty_pairs_are_held_out_and_every_word_is_still_trained():
    assert len(HELD_OUT_PAIRS) == 20 and len(TRAINED_PAIRS) == 12 and not HELD_OUT_PAIRS & TRAINED_PAIRS
    assert {colour for colour, _ in TRAINED_PAIRS} == set(COLOURS)
    assert all(sum(pair[1] == shape for pair in TRAINED_PAIRS) == 3 for shape in SHAPES)
    reached = {"red"}  # from colour to colour by shapes that both have: nothing stands apart
    for _ in COLOURS:
        shapes = {shape for colour, shape in TRAINED_PAIRS if colour in reached}
        reached |= {colour for colour, shape in TRAINED_PAIRS if shape in shapes}
    assert reached == set(COLOURS)


@pytest.mark.parametrize("objects", [(1,), (2,), (1, 2)])
def test_neither_training_nor_validation_clips_show_a_held_out_pair(objects):
    data = DataConfig(hold_out=True, objects=objects, validation_clips=64, num_frames=1)
    train, validation = training_clips(data), validation_clips(data)
    assert isinstance(train, ShapesWorld)
    held = validation.dataset  # pyright: ignore
    assert pairs_of(train.scene(index) for index in range(300)) == TRAINED_PAIRS
    assert pairs_of(held.scene(index) for index in range(64)) <= TRAINED_PAIRS
    everything = training_clips(replace(data, hold_out=False))
    assert pairs_of(everything.scene(index) for index in range(300)) & HELD_OUT_PAIRS  # pyright: ignore


@pytest.mark.parametrize("objects", [1, 2])
def test_the_question_of_composition_asks_for_held_out_pairs_alone(objects):
    scenes = draw_prompts("test", 300, seed=2, objects=objects, pairs="held out")
    assert pairs_of(scenes) == HELD_OUT_PAIRS
    assert pairs_of(draw_prompts("test", 300, seed=2, objects=objects, pairs="trained")) == TRAINED_PAIRS
    with pytest.raises(ValueError, match="pairs"):
        draw_prompts("test", 3, seed=2, pairs="some")  # pyright: ignore[reportArgumentType]


def test_the_run_file_says_what_was_held_out(tmp_path):
    run = TokenizerRun(preset="shapes-fsq", output_dir=tmp_path, data=DataConfig(hold_out=True))
    run.save(tmp_path / "run.json")
    assert TokenizerRun.load(tmp_path / "run.json") == run
    with pytest.raises(ValueError, match="hold_out"):
        DataConfig(source="digits", hold_out=True)


def test_models_that_saw_the_held_out_pairs_are_no_beginning(tmp_path):
    seen = TokenizerRun(preset="shapes-fsq", output_dir=tmp_path, tiny=True)
    (tmp_path / "model").mkdir()
    seen.save(tmp_path / "run.json")
    source = str(tmp_path / "model")
    data = DataConfig(hold_out=True)
    with pytest.raises(ValueError, match="trained on all"):
        fresh_tokenizer(replace(seen, data=data, init_from=source))
    with pytest.raises(ValueError, match="trained on all"):
        fresh_pipeline(GeneratorRun(preset="shapes-masked", output_dir=tmp_path, data=data, tokenizer=source))
    replace(seen, data=data).save(tmp_path / "run.json")
    check_held_out(source)
    with pytest.raises(ValueError, match="trained on all"):
        check_held_out("shapes-fsq")  # the built-in one


def test_only_models_that_never_saw_the_pairs_are_asked_for_them(tmp_path, repository):
    held_out = recipe_module("eval/composition.py").held_out

    run = TokenizerRun(preset="shapes-fsq", output_dir=tmp_path, data=DataConfig(hold_out=True))
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="give the folder of a training run"):
        held_out(tmp_path / "model")
    run.save(tmp_path / "run.json")
    assert held_out(tmp_path / "model") == tmp_path.name
    with pytest.raises(ValueError, match="trained on all pairs"):
        held_out(repository / "vidgen" / "pretrained" / "shapes-masked")


def test_a_wrong_shape_that_the_colour_was_trained_with_counts_as_taken_for_it():
    taken_for_trained = recipe_module("eval/composition.py").taken_for_trained

    def failed(asked: str, *seen: str) -> dict:
        prompt = f"a small {asked} moving left on a gray background"
        return {"prompt": prompt, "seen": {"objects": [{"shape": shape} for shape in seen]}}

    assert {("purple", "circle"), ("red", "circle"), ("red", "square")} <= TRAINED_PAIRS
    prompts = [failed("purple star", "circle"), failed("purple star", "square"), failed("red star", "square")]
    counted = taken_for_trained(prompts)
    assert counted["right"] == 2 and counted["share"] == pytest.approx(2 / 3)
    assert counted["by_chance"] == pytest.approx((1 + 1 + 2) / 9)
    ignored = [failed("purple star"), failed("purple star", "circle", "circle"), failed("purple star", "star")]
    assert taken_for_trained([*prompts, *ignored]) == counted and taken_for_trained(ignored) == {}


def test_the_table_of_composition_holds_every_model_that_was_asked(tmp_path):
    composition = recipe_module("eval/composition.py")
    from vidgen.tokenizers.presets import TOKENIZER_PRESETS

    tokenizer = TOKENIZER_PRESETS["shapes-fsq"].tiny().build()
    for name in ("one", "other"):
        answer = composition.ask(Oracle(tokenizer), name, pairs="held out", objects=1, prompts=2, batch_size=2)
        assert len(answer["failed"]) == 2 - answer["attributes"]["all_right"]["right"] and "prompts" not in answer
        write_json(tmp_path / f"composition_held_1_{name}.json", answer)
    table = composition.rows(tmp_path)
    assert {row["model"] for row in table} == {"one", "other"} and {"pairs", "objects", "share"} <= set(table[0])
    lines = composition.table(tmp_path).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| one | 2 | 0 % (0–66) |")
