package config

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// A leaf is one key with its value.
type leaf struct {
	key    string
	value  reflect.Value
	reload bool
}

// leaves flattens a configuration. Handlers appear with their own names.
func leaves(cfg Config) []leaf {
	var all []leaf
	var walk func(prefix string, v reflect.Value, reload bool)
	walk = func(prefix string, v reflect.Value, reload bool) {
		switch {
		case isTable(v.Type()):
			for i := range v.NumField() {
				f := v.Type().Field(i)
				walk(join(prefix, f.Tag.Get("toml")), v.Field(i), f.Tag.Get("reload") == "yes")
			}
		case v.Kind() == reflect.Map:
			for _, name := range v.MapKeys() {
				walk(join(prefix, tableName(name.String())), v.MapIndex(name), reload)
			}
		default:
			all = append(all, leaf{prefix, v, reload})
		}
	}
	walk("", reflect.ValueOf(cfg), false)
	return all
}

func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

// tableName is a table's name as TOML has it: bare where it may be.
func tableName(name string) string {
	if bareKey.MatchString(name) {
		return name
	}
	return strconv.Quote(name)
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// Change is a key whose value differs between two configurations.
type Change struct {
	Key      string
	Old, New string // as TOML writes them; "" where the key is not there
	Reload   bool   // false: takes effect at the next start
}

// Diff lists what changed, sorted by key.
func Diff(before, after Config) []Change {
	changes := map[string]Change{}
	for _, l := range leaves(before) {
		changes[l.key] = Change{Key: l.key, Old: text(l.value), Reload: l.reload}
	}
	for _, l := range leaves(after) {
		c := changes[l.key]
		c.Key, c.New, c.Reload = l.key, text(l.value), l.reload
		changes[l.key] = c
	}
	var list []Change
	for _, c := range changes {
		if c.Old != c.New {
			list = append(list, c)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Key < list[j].Key })
	return list
}

func text(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if b, err := m.MarshalText(); err == nil {
			return fmt.Sprintf("%q", b)
		}
	}
	if v.Kind() == reflect.Slice {
		var items []string
		for i := range v.Len() {
			items = append(items, text(v.Index(i)))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	if v.Kind() == reflect.String {
		return fmt.Sprintf("%q", v.String())
	}
	return fmt.Sprint(v.Interface())
}

// didYouMean returns ", did you mean …" for the known key or table that is
// nearest to an unknown one, or "" if none is near.
func didYouMean(key string) string {
	best, distance := "", len(key)/2+1
	for _, known := range knownKeys(key) {
		if d := editDistance(key, known); d < distance {
			best, distance = known, d
		}
	}
	if best == "" {
		// A key in the wrong table is the commonest mistake with an old or a
		// foreign configuration: look for its last part anywhere.
		last := key[strings.LastIndex(key, ".")+1:]
		for _, known := range knownKeys(key) {
			if strings.HasSuffix(known, "."+last) {
				best = known
			}
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", best)
}

// knownKeys lists keys and tables; handlers get the name that the unknown key uses.
func knownKeys(unknown string) []string {
	cfg := Default()
	if parts := strings.Split(unknown, "."); len(parts) > 2 {
		cfg.Runtime.Handlers[parts[2]] = Handler{}
	}
	if name, ok := strings.CutPrefix(unknown, "images.verify."); ok && strings.Contains(name, ".") {
		cfg.Images.Verify[name[:strings.LastIndex(name, ".")]] = Verify{}
	}
	seen := map[string]bool{}
	var keys []string
	for _, l := range leaves(cfg) {
		for key := l.key; key != "" && !seen[key]; key = key[:max(0, strings.LastIndex(key, "."))] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	return keys
}

// editDistance counts insertions, deletions and replacements (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j]+1, row[j+1]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
