// Package idmap is about user and group ids that mean others inside: the maps
// of user namespaces (user_namespaces(7)), and mounts that show the owners of
// their files through such a map (mount_setattr(2)).
package idmap

import (
	"encoding/binary"
	"fmt"

	"noded.dev/noded/internal/kind"
)

// Range maps Length ids, the first of which is Container inside and Host on
// the node.
type Range struct {
	Container uint32 `json:"container"`
	Host      uint32 `json:"host"`
	Length    uint32 `json:"length"`
}

// ToHost is the node's id of an id inside; false if it has none.
func (r Range) ToHost(id uint32) (uint32, bool) {
	if id < r.Container || id-r.Container >= r.Length {
		return 0, false
	}
	return r.Host + (id - r.Container), true
}

func (r Range) String() string {
	return fmt.Sprintf("%d-%d", r.Container, uint64(r.Container)+uint64(r.Length)-1)
}

// Mapping is the map of a user namespace, or of a mount.
type Mapping struct {
	Users  Range `json:"users"`
	Groups Range `json:"groups"`
}

// User is the node's id of a user inside. Kind Invalid if it has none.
func (m Mapping) User(id uint32) (uint32, error) { return m.Users.find("user", id) }

// Group is the node's id of a group inside, likewise.
func (m Mapping) Group(id uint32) (uint32, error) { return m.Groups.find("group", id) }

func (r Range) find(what string, id uint32) (uint32, error) {
	host, ok := r.ToHost(id)
	if !ok {
		return 0, kind.Errorf(kind.Invalid, "%s %d is outside of %v, the ids of the user namespace", what, id, r)
	}
	return host, nil
}

// Root is the node's user and group of root inside, for files that it shall own.
func (m Mapping) Root() (uid, gid int, err error) {
	u, err := m.User(0)
	if err != nil {
		return 0, 0, err
	}
	g, err := m.Group(0)
	return int(u), int(g), err
}

// The form of extended attributes that hold access control lists
// (linux/posix_acl_xattr.h): a version and entries of tag, permissions and id.
const (
	aclHead  = 4
	aclEntry = 8
	aclUser  = 0x02
	aclGroup = 0x08
)

// ACL translates the ids in the value of a system.posix_acl_* attribute.
func (m Mapping) ACL(value []byte) ([]byte, error) {
	if len(value) < aclHead || (len(value)-aclHead)%aclEntry != 0 {
		return nil, kind.Errorf(kind.Invalid, "access control list of %d bytes is malformed", len(value))
	}
	out := append([]byte(nil), value...)
	for e := out[aclHead:]; len(e) > 0; e = e[aclEntry:] {
		find := m.User
		switch binary.LittleEndian.Uint16(e) {
		case aclUser:
		case aclGroup:
			find = m.Group
		default:
			continue // the file's owner, group and others have no id here
		}
		host, err := find(binary.LittleEndian.Uint32(e[4:]))
		if err != nil {
			return nil, fmt.Errorf("access control list: %w", err)
		}
		binary.LittleEndian.PutUint32(e[4:], host)
	}
	return out, nil
}
