//! The ring against a driver of our own, the reference walk, garbage and a second thread.

mod basics;
mod guest;
