"""What everything rests on: errors, the record, texts, receipts, tables, progress, the console."""
