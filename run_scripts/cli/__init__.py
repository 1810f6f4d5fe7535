"""What every verb of the command shares: options, errors, tables, plots and progress bars."""
