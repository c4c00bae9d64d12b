//! A disk whose changes stay in memory: what is below is read and never changed.
//!
//! It is how the question "what would a start do to this directory?" is answered by the code of a start itself. Only
//! pages that were written are held, and pages of zeros (a tail that is zeroed, 64 MiB of it) as a note that they are
//! zero. Syncs do nothing: nobody asks this disk what a power loss leaves.

use std::collections::BTreeMap;
use std::io;

use super::{Disk, FileId};

const PAGE_SIZE: usize = 4096;

/// Bytes of a file that differ from what is below. `None`: zeros.
type Pages = BTreeMap<u64, Option<Box<[u8; PAGE_SIZE]>>>;

#[derive(Debug)]
struct File {
    /// Its name on the disk below; `None`: it was created here.
    below: Option<String>,
    /// Its handle there, while somebody has one here.
    handle: Option<FileId>,
    handles: usize,
    size: u64,
    pages: Pages,
}

/// See the head of this file.
pub struct Overlay<'a> {
    below: &'a mut dyn Disk,
    /// What a name stands for, where that was looked at or changed; `None`: it was removed.
    names: BTreeMap<String, Option<usize>>,
    files: Vec<File>,
    /// Indexed by [`FileId`]: the file of each open handle.
    open: Vec<Option<usize>>,
}

impl<'a> Overlay<'a> {
    /// Nothing is changed yet.
    pub fn new(below: &'a mut dyn Disk) -> Overlay<'a> {
        Overlay { below, names: BTreeMap::new(), files: Vec::new(), open: Vec::new() }
    }

    /// The file of this name, looked up below if it was not met yet.
    fn resolve(&mut self, name: &str) -> io::Result<usize> {
        match self.names.get(name) {
            Some(Some(file)) => return Ok(*file),
            Some(None) => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        let handle = self.below.open(name)?;
        let size = self.below.len(handle);
        self.below.close(handle);
        let below = Some(name.to_owned());
        Ok(self.add(name, File { below, handle: None, handles: 0, size: size?, pages: Pages::new() }))
    }

    fn add(&mut self, name: &str, file: File) -> usize {
        self.files.push(file);
        self.names.insert(name.to_owned(), Some(self.files.len() - 1));
        self.files.len() - 1
    }

    fn hand_out(&mut self, file: usize) -> io::Result<FileId> {
        let known = &mut self.files[file];
        if let Some(name) = known.below.as_ref().filter(|_| known.handle.is_none()) {
            known.handle = Some(self.below.open(name)?);
        }
        known.handles += 1;
        let free = self.open.iter().position(Option::is_none).unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.open[free] = Some(file);
        Ok(FileId(u32::try_from(free).expect("handles are far fewer than 2^32")))
    }

    fn file_of(&self, file: FileId) -> usize {
        self.open[file.0 as usize].expect("a handle is used only between open and close")
    }

    /// Fills `buffer` with what is below; zeros where that has nothing.
    fn read_below(&mut self, file: usize, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while let Some(handle) = self.files[file].handle.filter(|_| filled < buffer.len()) {
            match self.below.read_at(handle, offset + filled as u64, &mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        buffer[filled..].fill(0);
        Ok(())
    }

    fn write_page(&mut self, file: usize, page: u64, at: usize, bytes: &[u8]) -> io::Result<()> {
        let mut content = Box::new([0; PAGE_SIZE]);
        match self.files[file].pages.get(&page) {
            _ if bytes.len() == PAGE_SIZE => {}
            Some(Some(known)) => content.copy_from_slice(&known[..]),
            Some(None) => {}
            None => self.read_below(file, page * PAGE_SIZE as u64, &mut content[..])?,
        }
        content[at..at + bytes.len()].copy_from_slice(bytes);
        let is_zero = content.iter().all(|&byte| byte == 0);
        self.files[file].pages.insert(page, (!is_zero).then_some(content));
        Ok(())
    }
}

impl Disk for Overlay<'_> {
    fn describe(&self) -> String {
        self.below.describe()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = self.below.list()?;
        names.retain(|name| !self.names.contains_key(name));
        names.extend(self.names.iter().filter(|(_, file)| file.is_some()).map(|(name, _)| name.clone()));
        names.sort_unstable();
        Ok(names)
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<FileId> {
        match self.resolve(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found.and(Err(io::ErrorKind::AlreadyExists.into())),
        }
        let created = File { below: None, handle: None, handles: 0, size, pages: Pages::new() };
        let file = self.add(name, created);
        self.hand_out(file)
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let file = self.resolve(name)?;
        self.hand_out(file)
    }

    fn close(&mut self, file: FileId) {
        let known = self.file_of(file);
        self.open[file.0 as usize] = None;
        let known = &mut self.files[known];
        known.handles -= 1;
        if let Some(handle) = known.handle.filter(|_| known.handles == 0) {
            self.below.close(handle);
            known.handle = None;
        }
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        Ok(self.files[self.file_of(file)].size)
    }

    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file_of(file);
        let left = self.files[file].size.saturating_sub(offset);
        let size = left.min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..size];
        self.read_below(file, offset, buffer)?;
        let end = offset + size as u64;
        let (first, behind) = (offset / PAGE_SIZE as u64, end.div_ceil(PAGE_SIZE as u64));
        for (page, content) in self.files[file].pages.range(first..behind) {
            let begin = page * PAGE_SIZE as u64;
            let (from, to) = (begin.max(offset), (begin + PAGE_SIZE as u64).min(end));
            let part = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            match content {
                Some(bytes) => part.copy_from_slice(&bytes[(from - begin) as usize..(to - begin) as usize]),
                None => part.fill(0),
            }
        }
        Ok(size)
    }

    fn write_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let file = self.file_of(file);
        let mut done = 0;
        while done < bytes.len() {
            let place = offset + done as u64;
            let at = (place % PAGE_SIZE as u64) as usize;
            let size = (PAGE_SIZE - at).min(bytes.len() - done);
            self.write_page(file, place / PAGE_SIZE as u64, at, &bytes[done..done + size])?;
            done += size;
        }
        self.files[file].size = self.files[file].size.max(offset + bytes.len() as u64);
        Ok(bytes.len())
    }

    fn sync_data(&mut self, _file: FileId) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let file = self.resolve(from)?;
        self.names.insert(to.to_owned(), Some(file));
        self.names.insert(from.to_owned(), None);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.resolve(name)?;
        self.names.insert(name.to_owned(), None);
        Ok(())
    }
}
