//! Names that no network has: asked of the machine's resolvers, or the client's own.
