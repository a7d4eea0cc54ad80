"""One file to read a run by: an HTML page without network, and the same in Markdown for a system card."""
