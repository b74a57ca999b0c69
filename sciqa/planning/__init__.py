"""Planning room: the memory, the volume and the machines that a run takes, before anything is started."""
