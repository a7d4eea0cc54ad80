"""What others read and write: Inspect logs, Parquet tables, model cards. Nothing is measured here."""
