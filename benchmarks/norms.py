"""AB-UPT training steps with RMSNorm and QK norm beside the same model without: ``python -m benchmarks.norms``."""

from __future__ import annotations

import dataclasses

from benchmarks import measure
from benchmarks.ab_upt import make_inputs, make_jax_step
from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.convert import PRESETS
from emmi_jax.models.init import init_params

VARIANTS = {
    "layer": {},
    "rms": {"norm": "rms"},
    "layer_qk": {"qk_norm": True},
    "rms_qk": {"norm": "rms", "qk_norm": True},
}


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/norms.json")
    parser.add_argument("--anchors", type=int, default=1024, help="anchors per branch (%(default)s)")
    parser.add_argument("--points", type=int, default=4096, help="geometry points (%(default)s)")
    parser.add_argument("--supernodes", type=int, default=1024, help="supernodes (%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of products (%(default)s)")
    parser.add_argument("--implementation", default="auto")
    options = parser.parse_args()
    measure.use_all_threads()
    published = PRESETS["drivaerml-tutorial"].config.to_dict()
    plain = AbUptConfig.from_dict(published | {"implementation": options.implementation, "dtype": options.dtype})
    inputs, steps = make_inputs(plain, options), {}
    for name, changes in VARIANTS.items():
        model = AnchoredBranchedUPT(dataclasses.replace(plain, **changes))
        steps[name], _ = make_jax_step(model, init_params(model), inputs)
        measure.wait(steps[name]())
    times = measure.interleaved_medians(steps, options.seconds)
    rows = [{"norms": name, "ms": 1e3 * t, "ratio": t / times["layer"]} for name, t in times.items()]
    title = f"AB-UPT training step, {options.anchors} anchors per branch, {measure.DEVICE}, {options.dtype}"
    measure.report(f"{title}; ratio to LayerNorm alone", rows, options.json)


if __name__ == "__main__":
    main()
