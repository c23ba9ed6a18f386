//! Dense decompositions.
