//! Tests of the catalog as a whole: against a `BTreeMap` and the plain definition of a join.

mod crash;
mod exchange;
mod joins;
mod model;
mod world;
