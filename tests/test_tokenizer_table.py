"""Are the tables in tokenizers/README.md, which trunk keeps which promise and which system is which preset, true?"""

import csv
import math
import re
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path

import diffusers
import pytest
import torch
from small_autoencoders import SMALL, small_autoencoder
from torch import Tensor

from vidgen.conditioning.known import last_frames
from vidgen.tokenizers import DiffusersAutoencoderTokenizer, Tokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.training import TokenizerRun
from vidgen.training.recipes import RECIPES

README_FOLDER = Path(__file__).resolve().parents[1] / "tokenizers"
README = (README_FOLDER / "README.md").read_text()
CAUSAL, STREAMS, MEMORY, IMAGE, GRID, TILES = (
    "later frames never change earlier tokens",
    "streams, equal to one shot",
    "memory",
    "image = one-frame video",
    "grid for patchified generators",
    "tiles of large frames",
)


def table(first_column: str) -> list[dict[str, str]]:
    """Rows of the table of the README whose first column is called so."""
    lines = README.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0].splitlines()
    names = [first_column, *cells(f"|{lines[0]}")]
    return [dict(zip(names, cells(line), strict=True)) for line in lines[2:]]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def named(text: str) -> list[str]:
    return re.findall("`([^`]+)`", text)


TRUNKS = table("trunk")
ROW_OF = {
    preset: [row for row in TRUNKS if any(fnmatch(preset, name) for name in named(row["presets"]))]
    for preset in TOKENIZER_PRESETS
}


SYSTEMS = table("system")


def row_of(preset: str) -> dict[str, str]:
    """The preset's row of promises; around another tokenizer, which says "as the wrapped one", that one's."""
    wrapped = TOKENIZER_PRESETS[preset].config.get("encoder_config", {}).get("_class_name")
    if wrapped is not None:
        preset = next(name for name, other in TOKENIZER_PRESETS.items() if other.model.__name__ == wrapped)
    (row,) = ROW_OF[preset]
    return row


def tiny(preset: str) -> Tokenizer:
    torch.manual_seed(0)
    return TOKENIZER_PRESETS[preset].tiny().build().eval()


def clip(frames: int, *, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, frames, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def earlier_tokens_stay(tokenizer: Tokenizer) -> bool:
    """Do tokens of earlier frames stay bit-equal when the frames from the tenth, or from the fourteenth, change?"""
    video, last = clip(25), last_frames(tokenizer.spec, (25, 16, 16))
    tokens, stay = tokenizer.encode(video).tokens, []
    for start in (10, 14):
        other = torch.cat([video[:, :, :start], clip(25, seed=1)[:, :, start:]], dim=2)
        change = tokens - tokenizer.encode(other).tokens
        stay.append((last < start).any() and not change[:, last < start].any())
    return all(stay)


def images_are_videos(tokenizer: Tokenizer) -> bool:
    """Are the tokens and the pixels of the first frame alone those that a video has for it?"""
    video = clip(17)
    image, whole = tokenizer.encode(video[:, :, :1]), tokenizer.encode(video)
    of_image, of_whole = (
        [latents.tokens[:, place] for place in latents.spec.slices(latents.size)] for latents in (image, whole)
    )
    for alone, part in zip(of_image, of_whole, strict=True):
        if not torch.allclose(alone, part[:, : alone.shape[1]], atol=1e-5):
            return False
    return torch.allclose(tokenizer.decode(image), tokenizer.decode(whole)[:, :, :1], atol=1e-4)


def test_every_preset_has_one_row_and_every_row_a_preset():
    assert {preset: len(rows) for preset, rows in ROW_OF.items()} == dict.fromkeys(TOKENIZER_PRESETS, 1)
    assert all(row in [rows[0] for rows in ROW_OF.values()] for row in TRUNKS)


@pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
def test_a_preset_does_what_its_row_says(preset: str):
    tokenizer, row = tiny(preset), row_of(preset)
    does = {
        CAUSAL: earlier_tokens_stay(tokenizer),
        STREAMS: tokenizer.spec.streamable,
        IMAGE: images_are_videos(tokenizer),
        GRID: tokenizer.spec.is_grid,
    }
    assert tokenizer.spec.causal == does[CAUSAL]
    assert does == {column: row[column].startswith("yes") for column in does}
    assert row[MEMORY].startswith("constant" if does[STREAMS] else "grows")  # tests/test_streaming.py measures it


@pytest.mark.parametrize("preset", TOKENIZER_PRESETS)
def test_tiles_of_a_preset_are_what_its_row_says(preset: str):
    """tests/test_tiling.py measures what exact ones are off."""
    tokenizer, row, (own,) = tiny(preset), row_of(preset), ROW_OF[preset]
    assert row[TILES] in (("exact", "approximate") if tokenizer.spec.is_grid else ("no",))
    encodes, decodes = (reach is not None for reach in tokenizer.reach)
    assert encodes == (row[TILES] == "exact")
    assert decodes == (encodes and "approximate to decode" not in own[TILES])


def results(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((README_FOLDER.parent / "eval" / "results" / name).read_text().splitlines()))


def test_errors_of_tiles_are_those_of_the_measured_table():
    measured, rows = results("tokenizers_tiling.csv"), {row["model"].strip("`"): row for row in table("model")}
    assert list(rows) == list(dict.fromkeys(row["model"] for row in measured))
    for row in measured:
        shown = rows[row["model"]]
        assert float(shown["one piece"]) == float(row["psnr_in_one_piece"])
        if f"halo {row['halo']}" in shown:
            psnr, *differences = (float(number) for number in shown[f"halo {row['halo']}"].split(", "))
            assert psnr == float(row["psnr_in_tiles"])
            assert differences == [float(f"{float(row[name]):.1g}") for name in ("pixels_mean", "pixels_max")]


def perplexities(rows: list[dict[str, str]]) -> list[float]:
    return sorted(round(float(row["perplexity"]), 1) for row in rows)


def test_the_readme_says_which_rows_of_the_comparison_collapsed():
    rows = results("tokenizers_compare.csv")
    shapes = [row for row in rows if row["world"] == "shapes" and row["seed"] == "0"]
    collapsed = [row for row in shapes if row["status"] == "collapsed"]
    assert f"**{len(collapsed)} of the {len(shapes)} rows of the shapes world (first seed) ended with" in README
    (real,) = [row for row in rows if row["world"] == "real" and row["status"] != "trained"]
    assert real["name"] == "holistic-tail-drop/fsq"
    assert f"one row collapsed, holistic tokens with tail drop ({perplexities([real])[0]})" in README
    trunks = {row["trunk"]: row for row in shapes if row["bottleneck"] == "fsq"}
    fallen = [row for row in trunks.values() if row["status"] == "collapsed"]
    assert f"{len(fallen)} of the {len(trunks) - 1} trunks with FSQ" in README  # beside the convolution
    standing = {"conv", "conv-haar", "scales", "structure-dynamics", "diffusion-decoder"}
    assert trunks.keys() - {row["trunk"] for row in fallen} == standing
    low, *_, high = perplexities(fallen)
    of_others = [perplexities([trunks[name]])[0] for name in ("conv", "conv-haar", "scales")]
    said = "a perplexity of {} to {} out of 1,000 codes (convolution {}, Haar bands {}, four scales {})"
    assert said.format(low, high, *of_others) in README
    low, *_, high = perplexities([row for row in fallen if row["trunk"].startswith("tubelet-vit")])
    assert f"in four rows that all collapsed (perplexity {low} to {high})" in README
    (rest,) = [row for row in collapsed if row not in fallen]
    assert rest["name"] == "conv/fsq-16-bits" and f"({perplexities([rest])[0]})" in README


def test_the_readme_says_how_far_the_second_seed_is_from_the_first():
    rows = results("tokenizers_compare.csv")
    assert f"{len(rows)} of 160 rows" in README
    found = {
        (world, seed): {row["name"]: float(row["psnr"]) for row in rows if (row["world"], row["seed"]) == (world, seed)}
        for world in ("shapes", "real")
        for seed in "01"
    }
    first, second, of_real = found["shapes", "0"], found["shapes", "1"], found["real", "1"]
    assert f"{len(second)} of the second in the shapes world and {len(of_real)} on real clips" in README
    furthest = max(abs(psnr - found["real", "0"][name]) for name, psnr in of_real.items())
    assert f"on real clips the {len(of_real)} rows of both are within {math.ceil(10 * furthest) / 10}" in README
    named = {"conv/vq": "cosine VQ", "conv/vq-plain": "plain VQ", "conv/residual-fsq": "residual FSQ"}
    said = [f"{shown} {second[name]:.1f}" for name, shown in named.items()]
    assert all(text in README for text in said), said
    others = second.keys() - named.keys() - {"conv/vq-balanced"}
    furthest = max(abs(second[name] - first[name]) for name in others)
    assert f"the other {len(others)} within {math.ceil(10 * furthest) / 10} of the first" in README


def test_the_readme_says_that_codes_beside_wan_were_hardly_in_use():
    rows = [row for row in results("tokenizers_beside_wan.csv") if row["bottleneck"] == "fsq"]
    short = [row for row in rows if row["steps"] == "300"]
    assert len(short) == 6 and {row["status"] for row in short} == {"collapsed"}
    low, *_, high = perplexities(short)
    least, *_, most = perplexities([row for row in rows if row not in short])
    assert f"perplexity {low} to {high} out of 64,000 codes; after 1,200 steps {least} to {most}" in README


def test_the_readme_has_the_contest_beside_wan_as_it_came_out():
    rows = results("tokenizers_beside_wan.csv")
    names = {
        "`base-kl`": ("base/kl", "base-longer/kl"),
        "Wan's trunk, KL": ("wan-like/kl",),
        "`base-fsq`": ("base/fsq", "base-longer/fsq"),
        "Wan's trunk, FSQ": ("wan-like/fsq",),
    }
    for shown, contestants in names.items():
        for name in contestants:
            found = [float(row["psnr"]) for row in rows if row["name"] == name]
            assert len(found) == 3
            cell = f"{sum(found) / 3:.1f} dB ({min(found):.1f} to {max(found):.1f})"
            assert any(line.startswith(f"| {shown} |") and cell in line for line in README.splitlines()), cell


@pytest.mark.parametrize("name", SMALL)
def test_an_autoencoder_of_diffusers_is_what_its_row_says(name: str):
    kind, config = SMALL[name]
    (row,) = [row for row in table("class") if f"`{kind}`" in row["class"]]
    spec = DiffusersAutoencoderTokenizer.around(small_autoencoder(name)).spec
    excepted = any(f"`{option}={value}`" in row[CAUSAL] for option, value in config.items())
    assert spec.causal == (row[CAUSAL].startswith("yes") and not excepted)
    assert spec.streamable == row["streams"].startswith("yes")


def test_every_preset_of_the_table_of_systems_exists_and_what_has_none_says_why():
    presets = {row["system"]: named(row["preset"]) for row in SYSTEMS}
    assert [name for names in presets.values() for name in names if name not in TOKENIZER_PRESETS] == []
    assert all(presets[row["system"]] or row["option, difference or what is missing"] for row in SYSTEMS)
    assert len(presets) == len(SYSTEMS)


def test_numbers_of_parameters_and_codes_that_systems_name_are_those_of_their_presets():
    said = " ".join(row["option, difference or what is missing"] for row in SYSTEMS)
    counts = re.findall(r"`([a-z0-9-]+)` has ([\d.]+) million", said)
    assert {name for name, _ in counts} == {"magvit-v2", "cosmos-8x8x8", "cosmos-8x16x16", "coordtok"}
    for name, count in counts:
        with torch.device("meta"):
            model = TOKENIZER_PRESETS[name].build()
        assert float(count) == round(sum(weight.numel() for weight in model.parameters()) / 1e6, 1)
    codes = re.findall(r"([\d,]+) codes in `([a-z0-9-]+)`", said)
    assert {name for _, name in codes} == {"shapes-vq", "base-vq"}
    for count, name in codes:
        assert TOKENIZER_PRESETS[name].config["bottleneck_options"]["codes"] == int(count.replace(",", ""))
    with torch.device("meta"):
        public = diffusers.AutoencoderKLCosmos()
    assert f"`AutoencoderKLCosmos` {sum(weight.numel() for weight in public.parameters()) / 1e6:.1f} and" in said


def test_every_option_and_recipe_that_systems_and_presets_name_exists():
    options = {item.name.replace("_", "-") for item in fields(TokenizerRun)}
    texts = [row["option, difference or what is missing"] for row in SYSTEMS]
    texts += [preset.about for preset in TOKENIZER_PRESETS.values()]
    assert {option for text in texts for option in re.findall(r"--(?:no-)?([a-z-]+)", text)} <= options
    assert {recipe for text in texts for recipe in re.findall(r"--recipe ([a-z-]+)", text)} <= set(RECIPES)
