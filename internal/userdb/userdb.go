// Package userdb resolves who a container runs as: from the request, the
// image's USER and the /etc/passwd and /etc/group of the container's root
// filesystem. Those files are hostile: they are read without leaving the root
// filesystem, without waiting and within fixed limits, and a user that cannot
// be resolved is an error, never root.
package userdb

import (
	"slices"

	"noded.dev/noded/internal/kind"
)

// Request is what is known of a container's identity.
type Request struct {
	RootFS             string // mounted root filesystem; read only
	ImageUser          string // USER of the image: "", "user", "uid", each with ":group" or ":gid"
	RunAsUser          *int64 // wins over RunAsUsername, which wins over ImageUser
	RunAsUsername      string // must exist in the image
	RunAsGroup         *int64 // only with RunAsUser or RunAsUsername
	SupplementalGroups []int64
	StrictGroups       bool // leave out the groups that the image gives the user
}

// User is a resolved identity.
type User struct {
	UID, GID       uint32
	AdditionalGIDs []uint32 // GID first, then the image's groups, then the request's; no doubles
	Home           string   // "/" if the image does not say
	Name           string   // "" if the image has no name for the uid
}

const (
	maxID     = 1<<31 - 1 // as Kubernetes limits user and group ids
	maxGroups = 65536     // NGROUPS_MAX
)

// Resolve finds the identity. Every error of content is kind.Invalid, also a
// name that the image does not have.
func Resolve(r Request) (User, error) {
	w, err := wish(r)
	if err != nil {
		return User{}, err
	}
	entry, err := findUser(r.RootFS, w.user)
	if err != nil {
		return User{}, err
	}
	user := User{UID: entry.uid, GID: entry.gid, Home: entry.home, Name: entry.name}
	if user.Home == "" {
		user.Home = "/"
	}
	groups, err := readGroups(r.RootFS, w.group.name, groupsOf(entry, r.StrictGroups))
	if err != nil {
		return User{}, err
	}
	switch {
	case w.group.name != "":
		if groups.named == nil {
			return User{}, kind.Errorf(kind.Invalid, "group %q is not in the image's /etc/group", w.group.name)
		}
		user.GID = *groups.named
	case w.group.id != nil:
		user.GID = *w.group.id
	}
	// A process keeps its primary group when it changes to another, so that a
	// group that takes access away cannot be left.
	user.AdditionalGIDs = append([]uint32{user.GID}, groups.member...)
	for _, g := range r.SupplementalGroups {
		id, err := checkID("supplemental group", g)
		if err != nil {
			return User{}, err
		}
		user.AdditionalGIDs = append(user.AdditionalGIDs, id)
	}
	user.AdditionalGIDs = unique(user.AdditionalGIDs)
	if n := len(user.AdditionalGIDs); n > maxGroups {
		return User{}, kind.Errorf(kind.Invalid, "the user has %d groups, the limit is %d", n, maxGroups)
	}
	return user, nil
}

// groupsOf is the name whose memberships count; "" if none do.
func groupsOf(entry passwdEntry, strict bool) string {
	if strict {
		return ""
	}
	return entry.name
}

func unique(ids []uint32) []uint32 {
	seen := make(map[uint32]bool, len(ids))
	return slices.DeleteFunc(ids, func(id uint32) bool {
		known := seen[id]
		seen[id] = true
		return known
	})
}

func checkID(what string, id int64) (uint32, error) {
	if id < 0 || id > maxID {
		return 0, kind.Errorf(kind.Invalid, "%s %d is not within 0 and %d", what, id, maxID)
	}
	return uint32(id), nil
}
