"""Columns of the tables that the kernels read: one definition for host and device.

``T_*``: int64 row per tensor (addresses, sizes, places in the scratch memory).
``H_*``: fp32 row per parameter group. ``X_*``: partial sums of a tile. ``Y_*``: of a column chunk.
``Z_*``: numbers of a tensor. ``A_*``, ``B_*``: planes of the row and column scratch memory.
"""

from __future__ import annotations

import triton.language as tl

# ---- tensors: addresses of parameter and state (0 where there is no such field)
T_P = tl.constexpr(0)
T_M = tl.constexpr(1)
T_M_SCALE = tl.constexpr(2)
T_M_ZERO = tl.constexpr(3)
T_M_ERROR = tl.constexpr(4)
T_V = tl.constexpr(5)
T_V_SCALE = tl.constexpr(6)
T_R = tl.constexpr(7)
T_R_SCALE = tl.constexpr(8)
T_C = tl.constexpr(9)
T_C_SCALE = tl.constexpr(10)
T_S = tl.constexpr(11)
T_S_SCALE = tl.constexpr(12)
T_SR = tl.constexpr(13)
T_SR_SCALE = tl.constexpr(14)
T_SC = tl.constexpr(15)
T_SC_SCALE = tl.constexpr(16)
T_TORQUE = tl.constexpr(17)
T_STEP = tl.constexpr(18)
T_AVG = tl.constexpr(19)
T_MASK = tl.constexpr(20)
T_MASK_SUM = tl.constexpr(21)
T_SIGNS = tl.constexpr(22)
T_EDGE = tl.constexpr(23)
T_SPACE = tl.constexpr(24)
T_SPACE_SCALE = tl.constexpr(25)
T_BASIS = tl.constexpr(26)
T_OWED = tl.constexpr(27)
T_REST = tl.constexpr(28)  # what 16-bit weights lose, where it is kept
# ---- tensors: sizes and flags
T_BATCH = tl.constexpr(29)
T_ROWS = tl.constexpr(30)
T_COLS = tl.constexpr(31)
T_NUMEL = tl.constexpr(32)
T_GROUP = tl.constexpr(33)
T_KEY = tl.constexpr(34)
T_INDEX = tl.constexpr(35)
T_P_KIND = tl.constexpr(36)
T_G_KIND = tl.constexpr(37)
T_CODED = tl.constexpr(38)
T_FACTORED = tl.constexpr(39)
T_MATRIX = tl.constexpr(40)
T_BLOCK = tl.constexpr(41)
T_TILE = tl.constexpr(42)  # first tile, tiles of one matrix
T_TILES = tl.constexpr(43)
T_CHUNK = tl.constexpr(44)  # first column chunk, chunks of one matrix
T_CHUNKS = tl.constexpr(45)
T_ROW_AT = tl.constexpr(46)
T_COL_AT = tl.constexpr(47)
T_PART_AT = tl.constexpr(48)
T_FLAT = tl.constexpr(49)  # first tile of the flat passes, number of them
T_FLATS = tl.constexpr(50)
T_HEIGHT = tl.constexpr(51)  # picture, 0 where there is none
T_WIDTH = tl.constexpr(52)
T_SALT_R = tl.constexpr(53)  # places of the fields, which salt their random bits
T_SALT_C = tl.constexpr(54)
T_SALT_SR = tl.constexpr(55)
T_SALT_SC = tl.constexpr(56)
T_SALT_SPACE = tl.constexpr(57)
T_SALT_EDGE = tl.constexpr(58)
T_SIDE = tl.constexpr(59)  # spatial variance: 0 none, 1 of rows, 2 of columns
T_RANK = tl.constexpr(60)
T_RANK_AT = tl.constexpr(61)
T_WIDE = tl.constexpr(62)  # the basis belongs to the rows
T_SCALE_AT = tl.constexpr(63)  # first further momentum in the table of them
T_MEANS = tl.constexpr(64)  # first matrix
T_PIECE = tl.constexpr(65)  # first piece of the projection, pieces of one matrix
T_PIECES = tl.constexpr(66)
T_TAIL = tl.constexpr(67)  # the basis is that of the directions that are not kept
T_SHARE = tl.constexpr(68)  # rows of a flat tile that share a scale
T_SALT_M = tl.constexpr(69)
WIDTH = tl.constexpr(72)

# ---- groups
H_LR_AT = tl.constexpr(0)  # written by the host at every step
H_EPS0 = tl.constexpr(1)
H_EPS1 = tl.constexpr(2)
H_EPS2 = tl.constexpr(3)
H_CLIP = tl.constexpr(4)
H_FINAL = tl.constexpr(5)
H_BETA1 = tl.constexpr(6)
H_W1 = tl.constexpr(7)  # 1 - beta, rounded once from fp64
H_W2 = tl.constexpr(8)
H_W3 = tl.constexpr(9)
H_LOG_DECAY = tl.constexpr(10)
H_FLOOR = tl.constexpr(11)
H_WARMUP = tl.constexpr(12)
H_ALLORA = tl.constexpr(13)
H_ETA2 = tl.constexpr(14)  # 1 / eta^2
H_DECAY = tl.constexpr(15)
H_DECAY_ALWAYS = tl.constexpr(16)
H_TAM = tl.constexpr(17)
H_GRAMS = tl.constexpr(18)
H_CAUTIOUS = tl.constexpr(19)
H_SPD = tl.constexpr(20)
H_MASK = tl.constexpr(21)  # 0 none, 1 element, 2 row, 3 tensor
H_LOW = tl.constexpr(22)
H_HIGH = tl.constexpr(23)
H_HARD = tl.constexpr(24)  # min_lr where it is hard, else 0
H_BOOST = tl.constexpr(25)
H_EDGE = tl.constexpr(26)
H_EDGE_AT = tl.constexpr(27)
H_BACKGROUND = tl.constexpr(28)
H_DETAIL = tl.constexpr(29)
H_FREQUENCY = tl.constexpr(30)
H_EMPHASIS = tl.constexpr(31)
H_OWED = tl.constexpr(32)
H_OWN = tl.constexpr(33)  # weights of exp_avg and of the update in the mixture of momenta
H_NOW = tl.constexpr(34)
HYPER = tl.constexpr(40)

# ---- sums of a tile
X_R = tl.constexpr(0)
X_ABS = tl.constexpr(1)
X_MM = tl.constexpr(2)
X_GP = tl.constexpr(3)
X_UU = tl.constexpr(4)
X_UM = tl.constexpr(5)
X_LL = tl.constexpr(6)
X_PP = tl.constexpr(7)
X_S = tl.constexpr(8)
X_DEV = tl.constexpr(9)
X_MU = tl.constexpr(10)
X_RATE = tl.constexpr(11)
X_AGREE = tl.constexpr(12)
X_OUT = tl.constexpr(13)
X_SPACE = tl.constexpr(14)
X_SQUARE = tl.constexpr(15)
X_VOTE = tl.constexpr(16)
TILE_SUMS = tl.constexpr(20)

# ---- sums of a column chunk
Y_C = tl.constexpr(0)
Y_UU = tl.constexpr(1)
Y_UM = tl.constexpr(2)
Y_OUT = tl.constexpr(3)
Y_SPACE = tl.constexpr(4)
CHUNK_SUMS = tl.constexpr(8)

# ---- sums of a piece of a projection
W_UU = tl.constexpr(0)
W_TT = tl.constexpr(1)
W_TM = tl.constexpr(2)
PIECE_SUMS = tl.constexpr(4)

# ---- numbers of a tensor
Z_OK = tl.constexpr(0)
Z_CLIP = tl.constexpr(1)
Z_DAMP = tl.constexpr(2)
Z_ABS = tl.constexpr(3)
Z_GP = tl.constexpr(4)
Z_EDGE = tl.constexpr(5)
Z_FINAL = tl.constexpr(6)
Z_SLOPE = tl.constexpr(7)
Z_PULL = tl.constexpr(8)
Z_PP = tl.constexpr(9)
Z_VOTE = tl.constexpr(10)
Z_SQUARE = tl.constexpr(11)
Z_CAUTION = tl.constexpr(12)
Z_LEAN = tl.constexpr(13)  # keeps the length of a leaning update
Z_MM = tl.constexpr(14)
NUMBERS = tl.constexpr(16)

# ---- scratch planes
A_R = tl.constexpr(0)
A_GAIN = tl.constexpr(1)
A_S = tl.constexpr(2)
A_RATE = tl.constexpr(3)
A_SPACE = tl.constexpr(4)
ROW_PLANES = tl.constexpr(5)
B_C = tl.constexpr(0)
B_S = tl.constexpr(1)
B_SPACE = tl.constexpr(2)
COL_PLANES = tl.constexpr(3)
PARTIALS = tl.constexpr(4)  # partial column sums of a tile: three of pass 1, four of pass 4

# ---- the sketch of an update (techniques.sketch)
BUCKETS = tl.constexpr(4096)
PERIOD = tl.constexpr(65537)

# ---- codes
F32 = tl.constexpr(0)
BF16 = tl.constexpr(1)
F16 = tl.constexpr(2)
ANY = tl.constexpr(3)
DYNAMIC = tl.constexpr(1)
SOFTSIGN = tl.constexpr(2)
AFFINE = tl.constexpr(3)
SOFTSIGN4 = tl.constexpr(4)
