"""Runs a model that `emmi-jax export` wrote; needs jax, numpy and flatbuffers, and nothing else of this package.

>>> import emmi_jax.deploy
>>> surrogate = emmi_jax.deploy.load("model.emmi")  # doctest: +SKIP
>>> encoded = surrogate.encode(points={"surface": surface, "volume": volume})  # doctest: +SKIP
>>> fields = encoded.predict({"volume": positions})  # {"volume_velocity": [N, 3], ...}  # doctest: +SKIP

This folder can be copied into another project and imported there under any name.

An exported file is an uncompressed zip: `manifest.json`, arrays as `.npy` and programs as StableHLO. Opening one reads
JSON, numbers and programs for the accelerator, never Python code; nothing is extracted to disk.
"""

from .draws import Geometry as Geometry
from .draws import Points as Points
from .encoded_set import EncodedSet as EncodedSet
from .exported import ExportedSurrogate as ExportedSurrogate
from .intervals import Intervals as Intervals
from .reading import load as load
from .spread import Spread as Spread
from .streaming import StreamedChunk as StreamedChunk
from .surrogate import Encoded as Encoded
