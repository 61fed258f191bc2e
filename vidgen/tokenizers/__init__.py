"""Video tokenizers: one interface (`Tokenizer`), one file each."""

from vidgen.tokenizers.base import Critic, Tokenizer
from vidgen.tokenizers.causal_conv import CausalConvTokenizer
from vidgen.tokenizers.coordinate_planes import CoordinatePlanesTokenizer
from vidgen.tokenizers.diffusers_autoencoder import DiffusersAutoencoderTokenizer
from vidgen.tokenizers.diffusion_decoder import DiffusionDecoderTokenizer
from vidgen.tokenizers.factorised_vit import FactorisedViTTokenizer
from vidgen.tokenizers.frame_causal_vit import FrameCausalViTTokenizer
from vidgen.tokenizers.guided_decoder import GuidedDecoderTokenizer
from vidgen.tokenizers.holistic import HolisticTokenizer
from vidgen.tokenizers.keyframe_motion import KeyframeMotionTokenizer
from vidgen.tokenizers.multi_scale import MultiScaleTokenizer
from vidgen.tokenizers.patchwise import PatchwiseTokenizer
from vidgen.tokenizers.structure_dynamics import StructureDynamicsTokenizer
from vidgen.tokenizers.tubelet_vit import TubeletViTTokenizer
from vidgen.tokenizers.wrapping import WrappingTokenizer

TOKENIZERS = (
    CausalConvTokenizer,
    CoordinatePlanesTokenizer,
    DiffusersAutoencoderTokenizer,
    DiffusionDecoderTokenizer,
    FactorisedViTTokenizer,
    FrameCausalViTTokenizer,
    GuidedDecoderTokenizer,
    HolisticTokenizer,
    KeyframeMotionTokenizer,
    MultiScaleTokenizer,
    PatchwiseTokenizer,
    StructureDynamicsTokenizer,
    TubeletViTTokenizer,
)

__all__ = [
    "TOKENIZERS",
    "CausalConvTokenizer",
    "CoordinatePlanesTokenizer",
    "Critic",
    "DiffusersAutoencoderTokenizer",
    "DiffusionDecoderTokenizer",
    "FactorisedViTTokenizer",
    "FrameCausalViTTokenizer",
    "GuidedDecoderTokenizer",
    "HolisticTokenizer",
    "KeyframeMotionTokenizer",
    "MultiScaleTokenizer",
    "PatchwiseTokenizer",
    "StructureDynamicsTokenizer",
    "Tokenizer",
    "TubeletViTTokenizer",
    "WrappingTokenizer",
]
