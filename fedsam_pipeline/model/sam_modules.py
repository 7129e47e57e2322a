"""The one place that imports Meta's ``segment_anything``.

Its package ``__init__`` imports torchvision, which it does not declare and which a CPU-only torch cannot use; only the model definitions
are needed here, and those need torch alone. They are imported under a private alias whose ``__path__`` is the installed package's folder.
``sys.modules["segment_anything"]`` stays as it is, so a user's own import of the package keeps working.
"""

import importlib
import importlib.util
import sys
import types

_ALIAS = "fedsam_pipeline.model._segment_anything"


def _modeling() -> types.ModuleType:
    if _ALIAS not in sys.modules:
        found = importlib.util.find_spec("segment_anything")
        if found is None or not found.submodule_search_locations:
            raise ImportError("the package segment-anything is not installed: pip install segment-anything==1.0")
        alias = types.ModuleType(_ALIAS)
        alias.__path__ = list(found.submodule_search_locations)
        sys.modules[_ALIAS] = alias
    return importlib.import_module(f"{_ALIAS}.modeling")


_modules = _modeling()
ImageEncoderViT = _modules.ImageEncoderViT
MaskDecoder = _modules.MaskDecoder
PromptEncoder = _modules.PromptEncoder
PositionEmbeddingRandom = importlib.import_module(f"{_ALIAS}.modeling.prompt_encoder").PositionEmbeddingRandom
TwoWayTransformer = _modules.TwoWayTransformer
LayerNorm2d = importlib.import_module(f"{_ALIAS}.modeling.common").LayerNorm2d
HyperNetworkMLP = importlib.import_module(f"{_ALIAS}.modeling.mask_decoder").MLP
