"""What this machine is and does: its identity, processes, load, locks and sleep; never imports a study or its rows."""
