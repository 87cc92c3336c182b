"""What a fold did, as plain data: written by the pipeline, read by reports, tables and the hub."""
