"""docs/tour.md shows what its commands print now."""
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("regenerate", ROOT / "docs" / "regenerate.py")
regenerate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(regenerate)


def test_tour_is_current():
    from engram.codegen.opencl.device import available, device
    ok, reason = available()
    if not ok:
        pytest.skip(f"the tour prints OpenCL C too: {reason}")
    if not device().caps.cpu:
        pytest.skip("the tour prints OpenCL C for a processor; work-groups are larger on a GPU")
    text = (ROOT / "docs" / "tour.md").read_text()
    assert regenerate.regenerate(text) == text, "run `python docs/regenerate.py` and look at the diff"
