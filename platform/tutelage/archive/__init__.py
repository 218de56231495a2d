"""Images and labels as they are stored, and the catalog of what there is.

The only room that knows image formats, folder layouts and where a patient lies in space;
everybody else gets arrays along (D, H, W) and a `Grid`.
"""

from tutelage.archive.importers import structures_of

__all__ = ["structures_of"]
