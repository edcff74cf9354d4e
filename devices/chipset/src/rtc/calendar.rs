//! Seconds since 1970 and civil dates (proleptic Gregorian calendar, UTC).

/// A date and time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    /// 1-12.
    pub(super) month: u8,
    /// 1-31.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

const DAY: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;
const DAYS_OF_400_YEARS: i64 = 146_097;

impl Civil {
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(DAY) + EPOCH, seconds.rem_euclid(DAY));
        let era = days.div_euclid(DAYS_OF_400_YEARS);
        let day_of_era = days.rem_euclid(DAYS_OF_400_YEARS);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months counted from March.
        let month = (5 * day_of_year + 2) / 153;
        Civil {
            year: year_of_era + era * 400 + i64::from(month >= 10),
            month: (if month < 10 { month + 3 } else { month - 9 }) as u8,
            day: (day_of_year - (153 * month + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Values out of range carry over, as in a chip that was set to nonsense.
    pub(super) fn seconds(&self) -> i64 {
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = self.year - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * DAYS_OF_400_YEARS + day_of_era - EPOCH;
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// 1 is Sunday.
    pub(super) fn weekday(&self) -> u8 {
        // 1970-01-01 was a Thursday.
        (self.seconds().div_euclid(DAY) + 4).rem_euclid(7) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, year, month, day, hour, weekday) in [
            (0, 1970, 1, 1, 0, 5),
            (951_782_400, 2000, 2, 29, 0, 3),
            (1_709_164_800, 2024, 2, 29, 0, 5),
            (4_107_542_400, 2100, 3, 1, 0, 2),
            (1_790_000_000, 2026, 9, 21, 14, 2),
            (-86_400, 1969, 12, 31, 0, 4),
        ] {
            let c = Civil::from_seconds(seconds);
            assert_eq!((c.year, c.month, c.day, c.hour, c.weekday()), (year, month, day, hour, weekday));
        }
    }

    #[test]
    fn round_trip() {
        for i in -2000..20_000i64 {
            let s = i * 777_777;
            assert_eq!(Civil::from_seconds(s).seconds(), s);
        }
    }
}
