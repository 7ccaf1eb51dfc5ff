"""Published ImageNet-1k weights of each variant: their name, their top-1 and the evaluation transform it was measured with.

One set of weights per variant, trained on ImageNet-1k alone where such a set exists; others are fetched by their names, see
`checkpoints/hub.py`. Accuracies are those of the official repositories and of timm; evaluation settings are timm's configuration of
the weights.
"""

from dataclasses import dataclass

from convnext_deploy.artifacts.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess, default_preprocess
from convnext_deploy.models.variants import resolve_variant

Three = tuple[float, float, float]
Statistics = tuple[Three, Three]

_IMAGENET: Statistics = (IMAGENET_MEAN, IMAGENET_STD)
_HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# of the images on which OpenAI's CLIP was trained (arXiv 2103.00020)
_CLIP: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_OFFICIAL_V1 = "facebookresearch/ConvNeXt, README at commit 048efcea"
_OFFICIAL_V2 = "facebookresearch/ConvNeXt-V2, README at commit 1e482726"
_TIMM = "timm, results/results-imagenet.csv at commit 7479d451"
_TIMM_NOTES = "timm, release notes"
_TIMM_CARD = "timm, model card of test_resnet.r160_in1k"


@dataclass(frozen=True)
class Published:
    """Weights that anyone can download, by timm's name without `timm/`.

    `top1` is in percent on the ImageNet-1k validation images under `evaluation`, with one decimal; `source` says who measured it.
    `non_commercial`: the weights are under CC BY-NC 4.0.
    """

    weights: str
    top1: float
    evaluation: Preprocess
    source: str
    non_commercial: bool = False


def _published(
    weights: str,
    top1: float,
    source: str,
    *,
    image_size: int = 224,
    crop_pct: float = 0.875,
    statistics: Statistics = _IMAGENET,
) -> Published:
    evaluation = Preprocess(image_size, crop_pct, "bicubic", *statistics)
    # the README of ConvNeXt-V2, section License: the code is MIT, the weights are CC-BY-NC
    return Published(weights, top1, evaluation, source, non_commercial=source == _OFFICIAL_V2)


# None: nobody has published weights.
PUBLISHED: dict[str, Published | None] = {
    "convnext_zepto_rms": _published("convnext_zepto_rms.ra4_e3600_r224_in1k", 72.8, _TIMM_NOTES, statistics=_HALF),
    "convnext_zepto_rms_ols": _published(
        "convnext_zepto_rms_ols.ra4_e3600_r224_in1k", 73.2, _TIMM_NOTES, crop_pct=0.9, statistics=_HALF
    ),
    "convnext_atto": _published("convnext_atto.d2_in1k", 75.7, _TIMM),
    "convnext_atto_ols": _published("convnext_atto_ols.a2_in1k", 75.9, _TIMM),
    "convnext_atto_rms": None,
    "convnext_femto": _published("convnext_femto.d1_in1k", 77.5, _TIMM),
    "convnext_femto_ols": _published("convnext_femto_ols.d1_in1k", 77.8, _TIMM),
    "convnext_pico": _published("convnext_pico.d1_in1k", 79.5, _TIMM),
    "convnext_pico_ols": _published("convnext_pico_ols.d1_in1k", 79.5, _TIMM, crop_pct=0.95),
    "convnext_nano": _published("convnext_nano.d1h_in1k", 80.8, _TIMM, crop_pct=0.95),
    "convnext_nano_ols": _published("convnext_nano_ols.d1h_in1k", 80.9, _TIMM, crop_pct=0.95),
    "convnext_tiny": _published("convnext_tiny.fb_in1k", 82.1, _OFFICIAL_V1),
    "convnext_tiny_hnf": _published("convnext_tiny_hnf.a2h_in1k", 82.2, _TIMM, crop_pct=0.95),
    "convnext_small": _published("convnext_small.fb_in1k", 83.1, _OFFICIAL_V1),
    "convnext_base": _published("convnext_base.fb_in1k", 83.8, _OFFICIAL_V1),
    "convnext_large": _published("convnext_large.fb_in1k", 84.3, _OFFICIAL_V1),
    # these three exist with larger pre-training only: CLIP on LAION-2B, or ImageNet-22k
    "convnext_large_mlp": _published(
        "convnext_large_mlp.clip_laion2b_augreg_ft_in1k", 87.3, _TIMM, image_size=256, crop_pct=1.0, statistics=_CLIP
    ),
    "convnext_xlarge": _published("convnext_xlarge.fb_in22k_ft_in1k", 87.0, _OFFICIAL_V1),
    "convnext_xxlarge": _published(
        "convnext_xxlarge.clip_laion2b_soup_ft_in1k", 88.6, _TIMM, image_size=256, crop_pct=1.0, statistics=_CLIP
    ),
    "convnextv2_atto": _published("convnextv2_atto.fcmae_ft_in1k", 76.7, _OFFICIAL_V2),
    "convnextv2_femto": _published("convnextv2_femto.fcmae_ft_in1k", 78.5, _OFFICIAL_V2),
    "convnextv2_pico": _published("convnextv2_pico.fcmae_ft_in1k", 80.3, _OFFICIAL_V2),
    "convnextv2_nano": _published("convnextv2_nano.fcmae_ft_in1k", 81.9, _OFFICIAL_V2),
    "convnextv2_tiny": _published("convnextv2_tiny.fcmae_ft_in1k", 83.0, _OFFICIAL_V2),
    "convnextv2_small": None,
    "convnextv2_base": _published("convnextv2_base.fcmae_ft_in1k", 84.9, _OFFICIAL_V2),
    "convnextv2_large": _published("convnextv2_large.fcmae_ft_in1k", 85.8, _OFFICIAL_V2),
    "convnextv2_huge": _published("convnextv2_huge.fcmae_ft_in1k", 86.3, _OFFICIAL_V2),
    **{
        name: _published(f"{name}.r160_in1k", top1, _TIMM_CARD, image_size=160, crop_pct=0.95, statistics=_HALF)
        for name, top1 in (("test_convnext", 47.8), ("test_convnext2", 53.5), ("test_convnext3", 53.3))
    },
}


def default_evaluation(variant: str) -> Preprocess:
    """Return the evaluation transform of a variant's published weights, or the usual one at 224 pixels where there are none.

    Raises: RecipeError: if no variant has that name.
    """
    published = PUBLISHED[resolve_variant(variant)]
    return default_preprocess(224) if published is None else published.evaluation
