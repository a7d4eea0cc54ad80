"""Every column that is written is described, and the page says what the code says."""

import importlib
import pkgutil
from pathlib import Path

import pytest

from tamperdose import run as run_package
from tamperdose.exchange.columns import COLUMNS, METRICS, OTHER_METRICS, TABLES, Kind, Table, schema_page
from tamperdose.files import read_csv
from tamperdose.run import compare_schema
from tamperdose.run.schema import FLOAT_COLUMNS, INTEGER_COLUMNS, METRIC_NAMES

ROOT = Path(__file__).parents[2]
BY_NAME = {table.name: table for table in TABLES}


def table_of(path: Path, run: Path) -> Table:
    if path.is_relative_to(run / "outputs"):
        return BY_NAME["outputs/ARM/DOSE.csv"]
    return BY_NAME[path.name]


def test_the_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "schema.md").read_text(encoding="utf-8")
    assert page == schema_page(), "run scripts/make_schema.py"


def test_every_column_that_a_run_writes_is_described(run: Path) -> None:
    files = [path for path in run.rglob("*.csv") if "ledger" not in path.parts]
    assert len(files) >= 8
    for path in files:
        columns, _ = read_csv(path, required=())
        table = table_of(path, run)
        known = {name.replace("JUDGE", "phrases") for name in table.columns}
        assert set(columns) <= known, path
        if path.parent == run:
            assert tuple(columns) == tuple(table.columns), path


def test_every_column_of_the_code_is_described() -> None:
    for table in TABLES:
        for name in table.columns:
            column = table.column(name)
            assert column.meaning and column.values, (table.name, name)
            assert (column.unit == "") == (column.kind in (Kind.TEXT, Kind.FLAG)), (table.name, name)
    unused = set(COLUMNS) - {name for table in TABLES for name in table.columns}
    assert not unused
    with pytest.raises(KeyError):
        Table("new.csv", "One row", ("a_new_column",)).column("a_new_column")


def test_every_list_of_columns_in_the_code_is_described() -> None:
    described = {name for table in TABLES for name in table.columns}
    lists = {
        f"{module.name}.{name}": value
        for module in pkgutil.iter_modules(run_package.__path__, "tamperdose.run.")
        for name, value in vars(importlib.import_module(module.name)).items()
        if name.endswith("_COLUMNS") and isinstance(value, tuple)
    }
    assert len(lists) > 15
    missing = {where: set(names) - described for where, names in lists.items() if set(names) - described}
    assert not missing


def test_types_are_those_of_the_readers() -> None:
    for table in TABLES:
        for name in table.columns:
            kind = table.column(name).kind
            if name in compare_schema._TEXT:
                assert kind is Kind.TEXT, (table.name, name)
            elif name in {*compare_schema._WHOLE, *INTEGER_COLUMNS}:
                assert kind is Kind.INTEGER, (table.name, name)
            elif name in compare_schema._FLAGS:
                assert kind is Kind.FLAG, (table.name, name)
            elif name in FLOAT_COLUMNS:
                assert kind is Kind.REAL, (table.name, name)


def test_every_metric_is_described(run: Path) -> None:
    assert set(METRICS) == set(METRIC_NAMES)
    told = {part for name in OTHER_METRICS for part in name.split(", ")}
    for path in run.glob("*.csv"):
        columns, rows = read_csv(path, required=())
        for row in rows if "metric" in columns else []:
            name = row["metric"]
            generic = f"{name.split('_')[0]}_UNIT"
            assert name in METRICS or name in told or generic in told, (path.name, name)
