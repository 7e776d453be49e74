"""Official files to records, records to pictures, pictures to batches; the demo set."""
