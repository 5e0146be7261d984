//! Settings: strings in, a configuration or the list of all faults out.
