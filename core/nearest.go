package core

import "strings"

// Nearest finds the name that a mistyped one most likely meant: within a third
// of its length in edits, or one that contains it. "" when none is near.
func Nearest(typed string, names []string) string {
	typed = strings.ToLower(typed)
	best, least := "", max(len(typed)/3, 1)+1
	for _, name := range names {
		if d := editDistance(typed, strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	if best != "" || len(typed) < 3 {
		return best
	}
	for _, name := range names {
		if strings.Contains(name, typed) || strings.Contains(typed, name) {
			return name
		}
	}
	return ""
}

// editDistance is the Levenshtein distance in bytes.
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
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
