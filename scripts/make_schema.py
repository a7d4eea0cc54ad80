"""Write `docs/schema.md`: every results file and every column, from `tamperdose.exchange.columns`."""

from pathlib import Path

from tamperdose.exchange.columns import schema_page
from tamperdose.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "schema.md"

if __name__ == "__main__":
    print(write_text(PAGE, schema_page()))
