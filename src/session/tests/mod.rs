//! The machine's behaviour, told as calls in virtual time, and as invariants under any input.

mod deciding;
mod faults;
mod handover;
mod interruptions;
mod properties;
mod speakers;
mod turns;
