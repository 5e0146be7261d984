//! Provider doubles that speak the real wire protocols on loopback.
