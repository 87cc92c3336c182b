"""What a run stands on: devices, memory, processes, hidden states on disk, small files."""
