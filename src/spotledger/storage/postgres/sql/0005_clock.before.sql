-- One row, which all nodes read: how often an operator has said that the clock of the database is right.
CREATE TABLE clock_trust (
    only_row smallint PRIMARY KEY CHECK (only_row = 1),
    number   bigint NOT NULL CHECK (number >= 0)
);
INSERT INTO clock_trust (only_row, number) VALUES (1, 0);
