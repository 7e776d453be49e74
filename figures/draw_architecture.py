"""Draws figures/architecture.png: `python figures/draw_architecture.py`."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # pixels per point, for sharp text
WIDTH, HEIGHT = 1120, 400
INK, LINE, PAPER = (33, 37, 41), (110, 117, 125), "white"
BLUE, GREEN, ORANGE, GREY = (221, 235, 247), (226, 240, 217), (252, 228, 214), (237, 237, 237)


class Sheet:
    def __init__(self):
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.fonts = {size: ImageFont.load_default(size * SCALE) for size in (11, 13)}

    def box(self, x, y, w, h, text, fill):
        """Draws a box with left edge x and vertical centre y; returns the points where arrows enter and leave."""
        corners = [x * SCALE, (y - h / 2) * SCALE, (x + w) * SCALE, (y + h / 2) * SCALE]
        self.draw.rounded_rectangle(corners, radius=6 * SCALE, fill=fill, outline=LINE, width=SCALE)
        self.text(x + w / 2, y, text, 13)
        return (x, y), (x + w, y)

    def text(self, x, y, text, size=11, colour=INK):
        place = (x * SCALE, y * SCALE)
        self.draw.multiline_text(place, text, colour, self.fonts[size], anchor="mm", align="center", spacing=4 * SCALE)

    def arrow(self, *points):
        points = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(points, fill=LINE, width=2 * SCALE, joint="curve")
        x, y = points[-1]
        self.draw.polygon([(x, y), (x - 9 * SCALE, y - 4 * SCALE), (x - 9 * SCALE, y + 4 * SCALE)], fill=LINE)


def draw():
    sheet = Sheet()
    middle = 240
    _, image = sheet.box(20, middle, 90, 60, "image\n3 x 224 x 224", GREY)
    start, backbone = sheet.box(140, middle, 150, 90, "ResNet-50\nlast stage\nwith stride 1", BLUE)
    sheet.arrow(image, start)
    start, feature_map = sheet.box(320, middle, 110, 60, "feature map\n2048 x 14 x 14", BLUE)
    sheet.arrow(backbone, start)
    fusion_in, fusion_out = sheet.box(800, middle, 90, 60, "concatenate\nL2", GREEN)
    rows = {"S   SPoC\nmean": 140, "M   MAC\nmaximum": middle, "G   GeM\n(mean x^p)^(1/p)": 340}
    for name, y in rows.items():
        start, pooled = sheet.box(470, y, 120, 50, name, GREEN)
        sheet.arrow(feature_map, (450, middle), (450, y), start)
        start, branch = sheet.box(650, y, 100, 40, "Dense, L2", GREEN)
        sheet.arrow(pooled, start)
        sheet.arrow(branch, (775, y), (775, middle), fusion_in)
    start, _ = sheet.box(920, middle, 170, 60, "embedding (1536)\nbatch-hard triplet loss", ORANGE)
    sheet.arrow(fusion_out, start)
    start, classifier = sheet.box(650, 50, 200, 44, "batch norm, Dense (classes)", GREEN)
    sheet.arrow((620, 140), (620, 50), start)
    start, _ = sheet.box(890, 50, 200, 60, "softmax loss: temperature,\nlabel smoothing", ORANGE)
    sheet.arrow(classifier, start)
    sheet.text(530, 60, "the first descriptor feeds\nthe auxiliary classifier,\nused in training only")
    sheet.text(300, 340, "any of S, M, G, in any order:\nS, M, G, SM, MG, ... SMG, GSM")
    sheet.image.save(str(Path(__file__).parent / "architecture.png"), optimize=True)


if __name__ == "__main__":
    draw()
