//! Input that nobody sends by accident.
