//! What every network driver shares.
