//! The worker: registers with a LiveKit server and runs the jobs it is given.
