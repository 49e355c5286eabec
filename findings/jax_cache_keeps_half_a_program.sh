#!/usr/bin/env bash
# Tool: JAX 0.12.0.1, the persistent compilation cache (`jax_compilation_cache_dir`); the same with 0.10.2.
# Expected: an entry that a kill or a full disk cut off is found damaged once, compiled again and replaced.
# Seen: entries are written in place and an existing one is never written again: every later start warns and compiles,
#   until somebody deletes the file. A process that reads while another writes warns, too.
# Hurts: whoever relies on the cache after an interrupted first start, and whoever turns warnings into errors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.12.0.1 jaxlib==0.12.0.1
cat > "$folder/start.py" <<'PYTHON'
import sys
import warnings

import jax

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = float(jax.jit(lambda x: x * 2 + 1)(3.0))
print(result, len([w for w in caught if "persistent compilation cache entry" in str(w.message)]))
PYTHON
start() { JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/start.py" "$folder/cache"; }
first=$(start)
second=$(start)
for entry in "$folder"/cache/*-cache; do truncate -s "$(($(stat -c %s "$entry") / 2))" "$entry"; done
third=$(start)
fourth=$(start)
echo "result and warnings of two starts: $first, $second; of two after entries were cut: $third, $fourth"
[ "$first" = "7.0 0" ] && [ "$second" = "7.0 0" ] && [ "${third%% *}" = 7.0 ] && [ "${third##* }" -gt 0 ] && [ "$fourth" = "$third" ]
