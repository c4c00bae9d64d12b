//! Memory for a load: all of it in one allocation, and of large pages where the system has them.
//!
//! A load of 2 GiB touches half a million pages of 4 KiB for the first time, 1.6 us each: 0.8 s, as long as all the
//! rest of the work on those bytes. In pages of 2 MiB it is 0.13 s. Only a load asks for them: to clear one takes
//! 0.1 ms, and a virtual machine whose host has taken the memory back waits 2 to 4 ms for it, which no single request
//! should.
//!
//! Nothing is touched before it is used, so what was announced and does not come takes no memory.

use std::ops::{Deref, DerefMut};

/// Bytes that are zero until they are written. They do not move.
pub(super) struct Bulk(Box<[u8]>);

impl Bulk {
    /// So many bytes.
    pub(super) fn new(size: usize) -> Bulk {
        let mut bytes = vec![0; size].into_boxed_slice();
        ask_for_large_pages(&mut bytes);
        Bulk(bytes)
    }
}

impl Deref for Bulk {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Bulk {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// A system that does not take the advice has pages of 4 KiB, and everything works as well.
#[allow(unsafe_code)]
fn ask_for_large_pages(bytes: &mut [u8]) {
    #[cfg(target_os = "linux")]
    {
        /// A multiple of the smallest pages of every machine: an advice begins where a page does.
        const PAGE: usize = 64 << 10;
        let skipped = bytes.as_ptr().align_offset(PAGE).min(bytes.len());
        let range = &mut bytes[skipped..];
        // SAFETY: the advice changes which pages back this range, which is ours alone, and never what it holds.
        unsafe {
            libc::madvise(range.as_mut_ptr().cast(), range.len(), libc::MADV_HUGEPAGE);
        }
    }
}
