"""What only an extra brings."""

from pathlib import Path

import pytest

from tamperdose.errors import ExtraError
from tamperdose.extras import require


def test_a_folder_of_that_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tamperdose_nowhere").mkdir()
    with pytest.raises(ExtraError, match="no tamperdose-nowhere"):
        require("a table", "tamperdose_nowhere", extra="none")
    (tmp_path / "tamperdose_nowhere" / "__init__.py").touch()
    require("a table", "tamperdose_nowhere", extra="none")
