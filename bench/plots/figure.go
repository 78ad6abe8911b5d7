package main

import (
	"cmp"
	"image/color"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// figure is one file: medians, with the least and the greatest of their rounds, of
// those who were measured in turns.
type figure struct {
	file, title, x, y string
	backend           string
	// measure finds the rows. What it has in parentheses is the place on the x axis: a number, or
	// with names the name of a place.
	measure *regexp.Regexp
	names   bool
}

var figures = []figure{
	{"pairs.svg", "Backend local: acquire and release", "clients on kept connections, and on a new one for each call", "pairs a second", "local",
		regexp.MustCompile(`^pairs/s, clients (.+)$`), true},
	{"pairs-p99.svg", "Backend local: 99th percentile of acquire and release", "clients on kept connections, and on a new one for each call", "ms", "local",
		regexp.MustCompile(`^99th percentile of a pair, clients (.+)$`), true},
	{"pairs-processor.svg", "Backend local: the daemon's processor time for acquire and release", "clients on kept connections, and on a new one for each call", "us", "local",
		regexp.MustCompile(`^daemon's processor time for a pair, clients (.+)$`), true},
	{"restart.svg", "Backend local: SIGKILL to serving", "locks held", "ms", "local",
		regexp.MustCompile(`^SIGKILL to serving, (\d+) locks$`), false},
	{"reexec.svg", "Backend local: longest wait of an open client across a re-exec", "locks held", "ms", "local",
		regexp.MustCompile(`^longest wait of an open client, re-exec with (\d+) locks$`), false},
	{"restart-cluster.svg", "Backend cluster, in the lab: SIGKILL to serving", "locks held", "ms", "cluster",
		regexp.MustCompile(`^SIGKILL to serving, (\d+) locks$`), false},
	{"dlm.svg", "Backend cluster, in the lab: acquire and release, and a refusal, beside the bare DLM", "where the resource is mastered", "us", "cluster",
		regexp.MustCompile(`^a (?:pair, (mastered .+)|refusal of what is (held .+))$`), true},
	{"curve-nodes.svg", "Backend cluster, in the lab: acquire and release, by nodes", "nodes in the lockspace", "us", "cluster",
		regexp.MustCompile(`^a pair, new each time, (\d+) nodes in the lockspace$`), false},
	{"curve-held.svg", "Backend cluster, in the lab: acquire and release, by locks held meanwhile", "locks held", "us", "cluster",
		regexp.MustCompile(`^a pair, new each time, (\d+) locks held$`), false},
	{"curve-owners.svg", "Backend cluster, in the lab: acquire and release, by owners with a connection each", "owners", "us", "cluster",
		regexp.MustCompile(`^a pair, new each time, (\d+) owners$`), false},
}

// line is one of those who were measured.
type line struct {
	who    string
	places []string // names of the places on the x axis
	points plotter.XYs
	spread plotter.YErrors // below and above the points
}

func (l *line) Len() int                            { return len(l.points) }
func (l *line) XY(i int) (x, y float64)             { return l.points.XY(i) }
func (l *line) YError(i int) (below, above float64) { return l.spread.YError(i) }

// lines are those for which there are rows, in their order. Ratios of two are none. An axis
// with powers of ten has no place for 0.
func (f *figure) lines(list []result) (lines []*line) {
	var places []string
	for _, r := range list {
		m := f.measure.FindStringSubmatch(r.Measure)
		if r.Backend != f.backend || m == nil || strings.Contains(r.Who, " / ") || r.Min <= 0 {
			continue
		}
		place := strings.Join(m[1:], "")
		x, err := strconv.ParseFloat(place, 64)
		if f.names {
			if !slices.Contains(places, place) {
				places = append(places, place)
			}
			x, err = float64(slices.Index(places, place)), nil
		}
		if err != nil || x <= 0 && !f.names {
			continue
		}
		i := slices.IndexFunc(lines, func(l *line) bool { return l.who == r.Who })
		if i < 0 {
			i = len(lines)
			lines = append(lines, &line{who: r.Who})
		}
		l := lines[i]
		l.points = append(l.points, plotter.XY{X: x, Y: r.Median})
		l.spread = append(l.spread, struct{ Low, High float64 }{r.Median - r.Min, r.Max - r.Median})
	}
	for _, l := range lines {
		l.places = places
	}
	// vmlockd looks the same in all figures.
	slices.SortStableFunc(lines, func(a, b *line) int {
		return cmp.Compare(rank(a.who), rank(b.who))
	})
	return lines
}

func rank(who string) int {
	if who == "vmlockd" {
		return 0
	}
	return 1
}

// The colours can be told apart by who does not see all of them (Okabe and Ito).
var colors = []color.RGBA{{0, 114, 178, 255}, {213, 94, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255}, {86, 180, 233, 255}, {230, 159, 0, 255}}

var shapes = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.BoxGlyph{}}

// aside is how far those of one place are apart.
const aside = 0.1

func (f *figure) draw(lines []*line, when, name string) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.Title.Text = f.title + "\n" + when
	p.Title.TextStyle.Font.Size, p.Title.Padding = 11, 8
	p.X.Label.Text, p.Y.Label.Text = f.x, f.y
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs = true, true, 8
	p.Add(plotter.NewGrid())
	least, greatest := math.Inf(1), 0.0
	for i, l := range lines {
		if f.names {
			for j := range l.points {
				l.points[j].X += aside * (float64(i) - float64(len(lines)-1)/2)
			}
		}
		for j, xy := range l.points {
			least, greatest = min(least, xy.Y-l.spread[j].Low), max(greatest, xy.Y+l.spread[j].High)
		}
		if err := l.add(p, colors[i%len(colors)], shapes[i%len(shapes)], !f.names); err != nil {
			return err
		}
	}
	// Whole powers of ten, and one more for the legend.
	p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(least))), math.Pow(10, math.Ceil(math.Log10(greatest))+1)
	if f.names {
		p.NominalX(wrapped(lines[0].places)...)
		p.X.Min, p.X.Max = -0.5, float64(len(lines[0].places))-0.5
	} else {
		var at []plot.Tick
		for _, xy := range longest(lines) {
			at = append(at, plot.Tick{Value: xy.X, Label: strconv.FormatFloat(xy.X, 'f', -1, 64)})
		}
		p.X.Tick.Marker = plot.ConstantTicks(at)
		p.X.Min, p.X.Max = at[0].Value/1.3, at[len(at)-1].Value*1.3
		p.X.Scale = plot.LogScale{}
	}
	c := vgsvg.New(24*vg.Centimeter, 13*vg.Centimeter)
	p.Draw(draw.New(c))
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(out); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// wrapped has the words of each in lines of a width for which there is room.
func wrapped(list []string) (out []string) {
	const width = 16
	for _, text := range list {
		var b strings.Builder
		n := 0
		for _, word := range strings.Fields(text) {
			switch {
			case n == 0:
			case n+1+len(word) > width:
				b.WriteByte('\n')
				n = 0
			default:
				b.WriteByte(' ')
				n++
			}
			b.WriteString(word)
			n += len(word)
		}
		out = append(out, b.String())
	}
	return out
}

// longest has the points of who has most of them.
func longest(lines []*line) plotter.XYs {
	return slices.MaxFunc(lines, func(a, b *line) int { return len(a.points) - len(b.points) }).points
}

func (l *line) add(p *plot.Plot, c color.RGBA, shape draw.GlyphDrawer, joined bool) error {
	dots, err := plotter.NewScatter(l.points)
	if err != nil {
		return err
	}
	dots.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(3), Shape: shape}
	bars, err := plotter.NewYErrorBars(l)
	if err != nil {
		return err
	}
	bars.Color = c
	p.Add(dots, bars)
	if !joined {
		p.Legend.Add(l.who, dots)
		return nil
	}
	path, err := plotter.NewLine(l.points)
	if err != nil {
		return err
	}
	path.Color = c
	p.Add(path)
	p.Legend.Add(l.who, path, dots)
	return nil
}
