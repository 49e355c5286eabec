import gc
import os
from pathlib import Path

import jax

# Most of the suite's time goes into compiling programs that run once. An empty XLA_FLAGS optimises fully.
FAST_TO_COMPILE = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later ones do not know these
    FAST_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FAST_TO_COMPILE)

# Tests, workers and subprocesses share what they compile, and so do runs of the suite one after another.
COMPILED = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in COMPILED.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

jax.config.update("jax_numpy_dtype_promotion", "strict")

# Tracing makes many small objects that live on; looking through them for garbage takes a twentieth of the time.
gc.set_threshold(20_000, 10, 50)
