//! What a model is given, and which model is asked.

pub mod routing;
