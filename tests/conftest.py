import os

# Most of the suite's time goes into compiling programs that run once. An empty XLA_FLAGS optimises fully.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
