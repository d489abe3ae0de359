"""What a training reports: lines, log, records for the pages, baselines, diagnostics."""
