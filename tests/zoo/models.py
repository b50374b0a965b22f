"""Every model of the zoo, in a fixed order.

``ZOO`` is the only name most tests need::

    @pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
    def test_model(entry):
        pytest.importorskip(entry.package)
        model, args, kwargs = entry.build()
"""

from __future__ import annotations

from .audio_models import AUDIO
from .diffusers_models import DIFFUSERS
from .entry import ZooModel
from .handwritten import HANDWRITTEN
from .handwritten_audio import HANDWRITTEN_AUDIO
from .monai_models import MONAI
from .transformers_audio import TRANSFORMERS_AUDIO
from .transformers_dense import TRANSFORMERS_DENSE
from .transformers_masks import TRANSFORMERS_MASKS
from .transformers_vision import TRANSFORMERS_VISION
from .vision_models import VISION

__all__ = ["ZOO", "ZooModel"]

ZOO: tuple[ZooModel, ...] = (
    *HANDWRITTEN,
    *HANDWRITTEN_AUDIO,
    *TRANSFORMERS_MASKS,
    *TRANSFORMERS_VISION,
    *TRANSFORMERS_DENSE,
    *TRANSFORMERS_AUDIO,
    *MONAI,
    *DIFFUSERS,
    *AUDIO,
    *VISION,
)
