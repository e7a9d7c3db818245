//! blockgraph
