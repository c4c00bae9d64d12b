//! What a node keeps per connection, found by slot in constant time.

use crate::conn::ConnId;

/// Values by connection. An id whose slot belongs to a later connection finds nothing.
#[derive(Debug)]
pub struct ConnTable<T> {
    slots: Vec<Option<(ConnId, T)>>,
    count: usize,
}

impl<T> ConnTable<T> {
    /// An empty table.
    pub fn new() -> ConnTable<T> {
        ConnTable { slots: Vec::new(), count: 0 }
    }

    /// Adds a connection whose slot must be free.
    pub fn insert(&mut self, conn: ConnId, value: T) {
        if self.slots.len() <= conn.slot() {
            self.slots.resize_with(conn.slot() + 1, || None);
        }
        let slot = &mut self.slots[conn.slot()];
        assert!(slot.is_none(), "slot of {conn:?} is taken");
        *slot = Some((conn, value));
        self.count += 1;
    }

    /// The value of a connection.
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut T> {
        self.slots.get_mut(conn.slot())?.as_mut().filter(|(id, _)| *id == conn).map(|(_, value)| value)
    }

    /// The value of a connection.
    pub fn get(&self, conn: ConnId) -> Option<&T> {
        self.slots.get(conn.slot())?.as_ref().filter(|(id, _)| *id == conn).map(|(_, value)| value)
    }

    /// Forgets a connection.
    pub fn remove(&mut self, conn: ConnId) -> Option<T> {
        self.get(conn)?;
        self.count -= 1;
        self.slots[conn.slot()].take().map(|(_, value)| value)
    }

    /// All connections, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &T)> {
        self.slots.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// Connections.
    pub fn len(&self) -> usize {
        self.count
    }
}
