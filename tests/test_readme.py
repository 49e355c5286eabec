import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs_as_printed() -> None:
    block = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    names: dict[str, object] = {}
    exec(block.group(1), names)
    y = np.asarray(names["y"])
    assert y.shape == (1, 3584, 192)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_linked_files_exist(link: str) -> None:
    assert (Path(__file__).parents[1] / link).exists()
