//! One owner of a machine's state transitions: vCPU threads, engine choice and switch, start to exit.
