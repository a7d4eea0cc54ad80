"""Planning, the ledger, the stages and their execution."""
