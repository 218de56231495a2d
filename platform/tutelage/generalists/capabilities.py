"""What each generalist can be prompted with, known before anything heavy is loaded.

Settings are checked with it, so that a question nobody can answer is refused at the start.
"""

from collections.abc import Mapping

from tutelage.generalists.base import Capabilities

_CLICKED = Capabilities(boxes=True, points=True, masks=True)

CAPABILITIES: Mapping[str, Capabilities] = {
    "litemedsam": Capabilities(boxes=True),
    "sam_vit_b": _CLICKED,
    "sam_vit_l": _CLICKED,
    "sam_vit_h": _CLICKED,
    "medsam": Capabilities(boxes=True, stretches=True),
    "mobilesam": _CLICKED,
    "sammed3d": Capabilities(points=True, volumes=True),
    "threshold": Capabilities(boxes=True, points=True),
}
"""By the name that YAML uses."""
